"""Many devices and many machines: which strategy a run takes, and what its replicas and workers agree on.

A replica is one copy of the model on one device; a worker is one process with its replicas. The numbers of replicas and
workers change speed and nothing else: batches are cut from one global order, sums are added up over all replicas before
anything is divided, and what one worker alone can know (a signal, the clock, a score) is told to all before anyone acts
on it.
"""

import contextlib
import json
import os
import signal

import numpy as np
import tensorflow as tf

from sequencing.errors import Failure, UserError

STRATEGIES = ('auto', 'one', 'mirrored', 'multi_worker')
WISHES = 3  # what a worker may ask of all: to stop for SIGINT, to stop for SIGTERM, to end because time is up
_PACK_BYTES = 32 << 20  # gradients travel in packs of this size, so that the first leave while the last are computed
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.InternalError,
         tf.errors.DeadlineExceededError, tf.errors.FailedPreconditionError)  # fmt: skip


class Distribution:
    """The replicas of a run.

    Args:
      strategy: a `tf.distribute.Strategy`; None for one device.
      workers: number of processes; worker: which of them this is.
    Attributes:
      replicas: in all workers together; local: of this worker, numbered from `first`.
      is_chief: whether this process writes, validates and talks.
    """

    def __init__(self, strategy=None, workers=1, worker=0):
        self.strategy = strategy or tf.distribute.get_strategy()
        self.workers, self.worker = workers, worker
        self.replicas = self.strategy.num_replicas_in_sync
        self.local = self.replicas // workers
        self.first = worker * self.local
        self.is_chief = worker == 0

    def scope(self):
        """Variables made within are copied to every replica."""
        return self.strategy.scope() if self.replicas > 1 else contextlib.nullcontext()

    def run(self, function, *arguments):
        """Calls `function` in every replica, with its part of what another `run` returned."""
        return self.strategy.run(function, args=arguments)

    def number(self):
        """Of the replica that asks, from 0; only within `run`."""
        if self.replicas == 1:
            return 0
        return int(tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group))

    def parts(self):
        """What `ParallelInputs.batches` takes for `replicas`: None for whole batches."""
        return (self.first, self.local, self.replicas) if self.replicas > 1 else None

    def any(self, value):
        """What every replica agrees on, taken from the first one here."""
        return tf.nest.map_structure(lambda x: self.strategy.experimental_local_results(x)[0], value,
                                     expand_composites=False)  # fmt: skip

    def add_up(self, tensors):
        """Sums over all replicas of a list of tensors, the same to the bit in each; only within `run`."""
        if self.replicas == 1:
            return tensors
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)

    # What only workers need -------------------------------------------------------------------------------------------

    def from_chief(self, numbers):
        """The chief's list of numbers, as an array of float64, in every worker. Waits for all of them."""
        if self.workers == 1:
            return np.array(numbers, np.float64)
        return self._chiefs([tf.constant(numbers, tf.float64)])[0].numpy()

    def share(self, variables):
        """Gives variables the chief's values in every worker."""
        variables = [getattr(variable, 'value', None) if _is_keras(variable) else variable for variable in variables]
        if self.workers == 1 or not variables:
            return
        for dtype in sorted({variable.dtype for variable in variables}, key=lambda dtype: dtype.name):
            some = [variable for variable in variables if variable.dtype == dtype]
            wide = tf.int64 if dtype.is_integer or dtype.is_bool else dtype
            flat = tf.concat([tf.reshape(tf.cast(self.any(v), wide), [-1]) for v in some], axis=0)
            found = tf.split(self._chiefs([flat])[0], [v.shape.num_elements() for v in some])
            for variable, values in zip(some, found):
                variable.assign(tf.cast(tf.reshape(values, variable.shape), dtype))

    def _chiefs(self, tensors):
        @tf.function(autograph=False)
        def exchange(*tensors):
            def mine():
                counts = self.number() == 0
                return self.add_up([tf.identity(x) if counts else tf.zeros_like(x) for x in tensors])

            return self.any(self.run(mine))

        return exchange(*tensors)

    @contextlib.contextmanager
    def chief_first(self):
        """Lets the chief run the body before the others, who end where it fails."""
        if not self.is_chief:
            if self.from_chief([0])[0]:
                raise Failure('the first worker ended before training began; its output says why.')
            yield
            return
        failed = 1
        try:
            yield
            failed = 0
        finally:
            self.from_chief([failed])

    @contextlib.contextmanager
    def lost_workers_told(self):
        """Turns what TensorFlow says about a worker that is gone into one message."""
        try:
            yield
        except _LOST as error:
            if self.workers == 1:
                raise
            said = str(error.message).strip().splitlines()
            raise Failure(
                f'worker {self.worker} of {self.workers} lost touch with another one '
                f'({said[0][:200] if said else ""}). '
                'Start the job again: it goes on from the last checkpoint.'
            ) from error
        finally:
            # At its end a process would wait for the thread that looks after its peers to wake, up to 30 seconds.
            if hasattr(self.strategy.extended, '_check_health_thread'):
                self.strategy.extended._check_health_thread_should_stop.set()
                self.strategy.extended._check_health_thread = None


def _is_keras(variable):
    return not isinstance(variable, tf.Variable) and isinstance(getattr(variable, 'value', None), tf.Variable)


class Stops:
    """When all workers stop: for a signal that came to any of them, or because the chief's clock says so.

    One process stops at once. Several tell each other with the gradients of an update, and all act on that one update
    later, so that nobody waits for the answer.

    Args:
      distribution: `Distribution`; stop: has `came`, the number of a signal or 0.
      time_up: called without arguments, tells whether the time of this process is up.
    Attributes:
      signal: number of the signal that all stop for, or 0; out_of_time: whether the time is up.
    """

    def __init__(self, distribution, stop, time_up):
        self._stop, self._time_up = stop, time_up
        self._alone, self._is_chief = distribution.workers == 1, distribution.is_chief
        self._before, self._agreed, self.out_of_time = None, 0, False

    @property
    def signal(self):
        return self._stop.came if self._alone else self._agreed

    def wishes(self):
        """What this worker asks for, for `Updater`; None where there is nobody to ask."""
        if self._alone:
            return None
        came = self._stop.came
        return [came == signal.SIGINT, came == signal.SIGTERM, self._is_chief and self._time_up()]

    def hear(self, agreed):
        """Takes what `Updater` returned."""
        if self._alone:
            self.out_of_time = self._time_up()
            return
        if self._before is not None:
            interrupts, terminations, late = self._before.numpy()
            self._agreed = int(signal.SIGTERM if terminations else signal.SIGINT if interrupts else 0)
            self.out_of_time = bool(late)
        self._before = agreed


def choose(name, device=''):
    """The `Distribution` that `--strategy` names; has to come before TensorFlow does anything.

    Args:
      name: 'one'; 'mirrored', all visible GPUs, or all logical CPUs where there is no GPU; 'multi_worker', one process
        of a job that `TF_CONFIG` or Slurm's environment describes; 'auto', mirrored if there are several GPUs.
      device: of `--device`, which asks for one.
    Raises:
      UserError: a device was chosen beside it, or the environment describes no job.
    """
    gpus = tf.config.list_physical_devices('GPU')
    if name == 'auto':
        name = 'mirrored' if len(gpus) > 1 and not device else 'one'
    if name == 'one':
        return Distribution()
    if device:
        raise UserError(f'--device {device} asks for one device, and --strategy {name} for all: leave one of them out.')
    if name == 'multi_worker':
        return _join_workers(len(gpus))
    return mirrored(all_devices())


def all_devices():
    """Names of all visible GPUs, or of all logical CPUs where there is none."""
    devices = tf.config.list_logical_devices('GPU') or tf.config.list_logical_devices('CPU')
    return [':'.join(found.name.split(':')[-2:]) for found in devices]


def mirrored(devices):
    """A `Distribution` over devices of this process, such as GPU:0."""
    if len(devices) < 2:
        return Distribution()
    # CPUs share their memory, and need none of the collective operations that GPUs are summed with.
    sums = None if devices[0].startswith('GPU') else tf.distribute.ReductionToOneDevice()
    return Distribution(tf.distribute.MirroredStrategy(devices, sums))


def _join_workers(gpus):
    cluster, kind, index = find_job()
    workers = sum(map(len, cluster.values()))
    worker = index + (len(cluster.get('chief', ())) if kind == 'worker' else 0)
    if workers == 1:
        return mirrored([f'GPU:{i}' for i in range(gpus)])
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster), task_type=kind, task_id=index, num_accelerators={'GPU': gpus}, rpc_layer='grpc'
    )
    options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=_PACK_BYTES)
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
    except (*_LOST, tf.errors.UnknownError, RuntimeError) as error:
        raise Failure(f'worker {worker} of {workers} could not join the others at {cluster}: '
                      f'{str(error).splitlines()[0][:200]}') from error  # fmt: skip
    return Distribution(strategy, workers, worker)


def find_job():
    """The addresses of a job's processes by kind, and kind and index of this one."""
    if os.environ.get('TF_CONFIG'):
        try:
            told = json.loads(os.environ['TF_CONFIG'])
            cluster, kind, index = told['cluster'], told['task']['type'], int(told['task']['index'])
            known = index in range(len(cluster[kind])) and set(cluster) <= {'chief', 'worker'}
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise UserError('TF_CONFIG does not describe a job. It looks like {"cluster": {"worker": ["host1:2222", '
                            '"host2:2222"]}, "task": {"type": "worker", "index": 0}}, with another index on every '
                            'host.')  # fmt: skip
        return cluster, kind, index
    if 'SLURM_PROCID' in os.environ:
        most = 1024  # GPUs are Slurm's business (--gpus-per-task); the resolver only wants as many as there are tasks
        try:
            resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
                port_base=int(os.environ.get('SEQUENCING_PORT', 8888)), gpus_per_node=most, gpus_per_task=1,
                auto_set_gpu=False,
            )  # fmt: skip
            return resolver.cluster_spec().as_dict(), *resolver.get_task_info()
        except (RuntimeError, ValueError) as error:
            raise UserError(f"Slurm's environment does not describe a job step ({error}): start with srun.") from None
    raise UserError('--strategy multi_worker needs to know its job: start it with srun under Slurm, or set TF_CONFIG '
                    'on every host; docs/many_machines.md shows both.')  # fmt: skip
