"""Many devices and many machines: which strategy a run takes, and what its replicas and workers agree on.

A replica is one copy of the model on one device; a worker is one process with its replicas. The numbers of replicas and
workers change speed and nothing else: batches are cut from one global order, sums are added up over all replicas before
anything is divided, and what one worker alone can know (a signal, the clock, a score) is told to all before anyone acts
on it.
"""

import contextlib
import faulthandler
import itertools
import json
import os
import re
import signal
import threading
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sequencing.cli import note
from sequencing.errors import Failure, UserError
from sequencing.structures import Replicas

STRATEGIES = ('auto', 'one', 'mirrored', 'multi_worker')
_PACK_BYTES = 32 << 20  # tensors travel in packs of about this size: the first can leave before the last is there


class Distribution:
    """The replicas of a run.

    Args:
      strategy: a `tf.distribute.Strategy`; None for one device.
      workers: number of processes; worker: which of them this is.
    Attributes:
      replicas: `Replicas`.
      is_chief: whether this process writes, validates and talks.
    """

    def __init__(self, strategy=None, workers=1, worker=0):
        self.strategy = strategy or tf.distribute.get_strategy()
        self.workers, self.worker = workers, worker
        local = self.strategy.num_replicas_in_sync // workers
        self.replicas = Replicas(worker * local, local, workers * local)
        self.is_chief = worker == 0
        self._from_all = tf.function(self._sum_over_workers, autograph=False)

    def scope(self):
        """Variables made within are copied to every replica."""
        return self.strategy.scope() if self.replicas.total > 1 else contextlib.nullcontext()

    def run(self, function, *arguments):
        """Calls `function` in every replica, with its part of what another `run` returned."""
        return self.strategy.run(function, args=arguments)

    def replica_id(self):
        """Of the replica that asks, from 0; only within `run`."""
        if self.replicas.total == 1:
            return 0
        return int(tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group))

    def local_copy(self, value):
        """The copy in the first replica here of what every replica has the same of; `value` may be nested."""
        return tf.nest.map_structure(lambda x: self.strategy.experimental_local_results(x)[0], value,
                                     expand_composites=False)  # fmt: skip

    def all_reduce_sum(self, tensors):
        """Sums over all replicas of a list of tensors, the same to the bit in each; only within `run`."""
        if self.replicas.total == 1:
            return tensors
        packs = _PACK_BYTES if len(tensors) > 1 else 0
        options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=packs)
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors, options)

    # What only workers need -------------------------------------------------------------------------------------------

    def from_all(self, numbers):
        """As many numbers of each worker: float64 `[workers, n]`, the same in all. Waits for all of them."""
        found = np.zeros([self.workers, len(numbers)])
        found[self.worker] = numbers
        return found if self.workers == 1 else self._exchange(tf.constant(found.ravel())).numpy().reshape(found.shape)

    def wait_for_all(self):
        """Returns once every worker has called it."""
        self.from_all([0])

    def share(self, variables):
        """Gives variables the chief's values in every worker."""
        if self.workers == 1:
            return
        for pack in _packs([tf_variable(variable) for variable in variables]):
            dtype = pack[0].dtype
            values = [tf.reshape(_widened(self.local_copy(variable)), [-1]) for variable in pack]
            flat = tf.concat(values, axis=0)
            flat = self._exchange(flat if self.is_chief else tf.zeros_like(flat))
            for variable, value in zip(pack, tf.split(flat, [value.shape[0] for value in values])):
                variable.assign(tf.cast(tf.reshape(value, variable.shape), dtype))

    def _exchange(self, vector):
        """The sum over all workers of a vector."""
        return self._from_all.get_concrete_function(tf.TensorSpec([None], vector.dtype))(vector)

    def _sum_over_workers(self, vector):
        def mine():
            speaks = self.replica_id() == self.replicas.first  # for its worker
            return self.all_reduce_sum([tf.identity(vector) if speaks else tf.zeros_like(vector)])[0]

        return self.local_copy(self.run(mine))

    @contextlib.contextmanager
    def chief_first(self):
        """Lets the chief run the body before the others, who end where it fails."""
        if not self.is_chief:
            if self.from_all([0])[0, 0]:
                raise Failure('the first worker ended before training began; its output says why.')
            yield
            return
        failed = 1
        try:
            yield
            failed = 0
        finally:
            self.from_all([failed])

    @contextlib.contextmanager
    def lost_workers_told(self):
        """Turns what TensorFlow says about a worker that is gone into one message; other failures pass as they are."""
        try:
            yield
        except tf.errors.OpError as error:
            if self.workers == 1 or not _tells_of_a_lost_worker(error):
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


def _tells_of_a_lost_worker(error):
    """Whether a peer could not be reached, or TensorFlow's check of peers (`check alive`) ended what was under way."""
    return isinstance(error, tf.errors.UnavailableError) or 'check alive' in str(error.message)


def tf_variable(variable):
    """The `tf.Variable` that a Keras variable holds; any other one as it is."""
    return variable if isinstance(variable, tf.Variable) else variable.value


def _packs(variables):
    """Lists of variables of one dtype each, of at most `_PACK_BYTES` together; a larger variable is alone."""
    for _, some in itertools.groupby(sorted(variables, key=lambda v: v.dtype.name), key=lambda v: v.dtype.name):
        pack, size = [], 0
        for variable in some:
            more = variable.shape.num_elements() * variable.dtype.size
            if pack and size + more > _PACK_BYTES:
                yield pack
                pack, size = [], 0
            pack.append(variable)
            size += more
        yield pack


def _widened(value):
    """Integers and booleans as int64, which can be summed everywhere."""
    return tf.cast(value, tf.int64) if value.dtype.is_integer or value.dtype.is_bool else tf.convert_to_tensor(value)


class StopVotes(NamedTuple):
    """What a worker asks of all: how many want to stop for SIGINT, for SIGTERM, or because the time is up."""

    interrupt: float = 0.0
    terminate: float = 0.0
    time_up: float = 0.0


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

    def votes(self):
        """`StopVotes` of this worker, for `Updater`; None where there is nobody to ask."""
        if self._alone:
            return None
        came = self._stop.came
        return StopVotes(came == signal.SIGINT, came == signal.SIGTERM, self._is_chief and self._time_up())

    def take_votes(self, votes):
        """Takes what `Updater` returned, the votes of all; they count when those of the next update come."""
        if self._alone:
            self.out_of_time = self._time_up()
            return
        if self._before is not None:
            counted = StopVotes(*self._before.numpy())
            self._agreed = int(signal.SIGTERM if counted.terminate else signal.SIGINT if counted.interrupt else 0)
            self.out_of_time = bool(counted.time_up)
        self._before = votes


def choose_distribution(name, device=''):
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
    # Where the choice is left to TensorFlow, workers never use NCCL; where NCCL is not there, it takes its own ring.
    exchange = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(implementation=exchange.NCCL if gpus else exchange.AUTO)
    seconds = _join_seconds()
    note(f'worker {worker} of {workers}: waiting for the others; ends with code 1 where they have not come in '
         f'{seconds} seconds (SEQUENCING_JOIN_SECONDS)')  # fmt: skip
    try:
        with _ended_after(seconds):
            found = Distribution(tf.distribute.MultiWorkerMirroredStrategy(resolver, options), workers, worker)
            found.wait_for_all()
    except (tf.errors.OpError, RuntimeError) as error:
        raise Failure(f'worker {worker} of {workers} could not join the others at {cluster}: '
                      f'{str(error).splitlines()[0][:200]}') from error  # fmt: skip
    return found


def _join_seconds():
    told = os.environ.get('SEQUENCING_JOIN_SECONDS', '600')
    if not told.isdecimal() or not int(told):
        raise UserError(f'SEQUENCING_JOIN_SECONDS is how many seconds workers wait for each other, such as 600; got '
                        f'{told!r}.')  # fmt: skip
    return int(told)


@contextlib.contextmanager
def _ended_after(seconds):
    """Ends this process with code 1, without a word, where its body takes longer; an interrupt ends it at once.

    TensorFlow would wait for a worker that never comes for an hour, and Python cannot act meanwhile: its lock is held.
    It also takes SIGTERM, which is given back.
    """
    in_main = threading.current_thread() is threading.main_thread()
    taken = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if in_main}
    with open(os.devnull, 'w') as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            for number in taken:  # of no use for SIGTERM once TensorFlow has taken it
                signal.signal(number, signal.SIG_DFL)
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            for number, handler in taken.items():
                signal.signal(number, handler or signal.SIG_DFL)


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
        return _find_slurm_job()
    raise UserError('--strategy multi_worker needs to know its job: start it with srun under Slurm, or set TF_CONFIG '
                    'on every host; docs/many_machines.md shows both.')  # fmt: skip


def _find_slurm_job():
    """As `find_job`, from the variables that `srun` sets. Ranks fill one host after the other, as nodes are listed."""
    told = {name: os.environ.get(f'SLURM_{name}', '') for name in ('PROCID', 'STEP_NODELIST', 'STEP_TASKS_PER_NODE')}
    try:
        rank, base = int(told['PROCID']), int(os.environ.get('SEQUENCING_PORT', 8888))
        hosts, tasks = _slurm_hosts(told['STEP_NODELIST']), _slurm_counts(told['STEP_TASKS_PER_NODE'])
        places = [(node, i) for node, count in enumerate(tasks) for i in range(count)]
        fits = len(hosts) == len(tasks) and rank < len(places)
    except ValueError:
        fits = False
    if not fits:
        said = ', '.join(f'SLURM_{name}={value!r}' for name, value in told.items())
        raise UserError(f"Slurm's environment does not describe a job step ({said}): start with srun.")
    if int(os.environ.get('SLURM_NODEID', places[rank][0])) != places[rank][0]:
        raise UserError('the tasks of this job do not fill one host after the other: srun --distribution=block.')
    return {'worker': [f'{hosts[node]}:{base + i}' for node, i in places]}, 'worker', rank


def _slurm_hosts(listed):
    """Names in a node list such as `gpu[08-10,12],big`, in its order."""
    hosts = []
    for name in re.findall(r'(?:[^,\[\]]|\[[^\[\]]*\])+', listed):
        parts = re.split(r'\[(.*?)\]', name)  # every second one was in brackets
        choices = [_slurm_numbers(part) if i % 2 else [part] for i, part in enumerate(parts)]
        hosts += map(''.join, itertools.product(*choices))
    return hosts


def _slurm_numbers(ranges):
    """`08-10,12` as 08, 09, 10, 12."""
    numbers = []
    for one in ranges.split(','):
        first, _, last = one.partition('-')
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
    return numbers


def _slurm_counts(listed):
    """`2(x3),1` as 2, 2, 2, 1."""
    counts = []
    for one in listed.split(','):
        found = re.fullmatch(r'(\d+)(?:\(x(\d+)\))?', one)
        if not found:
            raise ValueError(one)
        counts += [int(found[1])] * int(found[2] or 1)
    return counts
