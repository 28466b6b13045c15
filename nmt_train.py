"""Trains a model from a configuration.

    python nmt_train.py --config config_demo --model_dir runs/demo

Read from top to bottom: flags, preparing, the loop, validation. Started again with the same model folder, training goes
on where it was.
"""

import contextlib
import dataclasses
import errno
import os
import signal
import sys
import threading
import time
import zlib

from sequencing import cli

cli.quiet_tensorflow()

import tensorflow as tf  # noqa: E402

import build_inputs  # noqa: E402
import build_model  # noqa: E402
from sequencing import model_folder  # noqa: E402
from sequencing.config_files import load_config  # noqa: E402
from sequencing.diagnosis import first_nonfinite  # noqa: E402
from sequencing.distribution import STRATEGIES, Stops, choose_distribution  # noqa: E402
from sequencing.errors import UserError  # noqa: E402
from sequencing.model_folder import Checkpoints  # noqa: E402
from sequencing.objectives import phase_at  # noqa: E402
from sequencing.optimizers import LearningRate, build_optimizer, early_end  # noqa: E402
from sequencing.options import to_json  # noqa: E402
from sequencing.parallel_batches import Position  # noqa: E402
from sequencing.resume import check_resume, check_same_data, unread_by_rl, unread_without_flow  # noqa: E402
from sequencing.structures import Batch  # noqa: E402
from sequencing.training import TrainingState, Updater, reset  # noqa: E402
from sequencing.validation import Validator  # noqa: E402
from sequencing.warm_start import warm_start  # noqa: E402
from tools.explain import explain  # noqa: E402

USAGE = """
Trains a model from a configuration: a function config_*() of a Python file.

  python nmt_train.py --config config_demo --model_dir runs/demo
  python nmt_train.py --config config_en2de --set data.folder=$DATA/en-de --model_dir runs/en2de

  python nmt_train.py --config config_en2de --mode rl --init_from runs/en2de --model_dir runs/en2de_rl
      sequence-level training of what the first one learnt, by the recipe train.rl

Started again with the same --model_dir, training goes on where it was; nothing is ever deleted but
checkpoints: the oldest ones (train.keep_checkpoints), and the former best one.
"""


STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)


def define_flags(flags):
    from absl import flags as absl

    absl.DEFINE_string('config', '', 'name of a function config_*() in the configuration file', flag_values=flags)
    absl.DEFINE_string('config_file', '', 'the configuration file; by default config.py, else config_example.py',
                       flag_values=flags)  # fmt: skip
    absl.DEFINE_string('model_dir', '', "folder of the model; by default the configuration's", flag_values=flags)
    absl.DEFINE_enum('mode', None, ['train', 'rl'], 'train: likelihood, or the phases of a flow model; rl: '
                     'sequence-level training, best with --init_from; sets train.mode', flag_values=flags)  # fmt: skip
    absl.DEFINE_multi_string('set', [], 'FIELD=VALUE, overrides a field of the configuration; repeatable',
                             flag_values=flags)  # fmt: skip
    absl.DEFINE_string('init_from', '', 'model folder to take matching weights from (warm start)', flag_values=flags)
    absl.DEFINE_enum('precision', None, list(build_model.PRECISIONS), 'overrides the precision', flag_values=flags)
    absl.DEFINE_integer('threads', None, 'CPU threads; 0 for all cores', lower_bound=0, flag_values=flags)
    absl.DEFINE_integer('seed', None, 'overrides the seed', lower_bound=0, flag_values=flags)
    absl.DEFINE_string('device', '', 'device to compute on, such as CPU:0 or GPU:1; by default the first GPU, else CPU',
                       flag_values=flags)  # fmt: skip
    absl.DEFINE_enum('strategy', 'auto', STRATEGIES, "'mirrored': all GPUs here; 'multi_worker': one process "
                     "of a job that Slurm or TF_CONFIG describes; 'auto': mirrored where there are several GPUs",
                     flag_values=flags)  # fmt: skip
    absl.DEFINE_bool('explain', False, 'print the configuration, parameters, data and memory, and stop',
                     flag_values=flags)  # fmt: skip
    absl.DEFINE_bool('restart', False, 'rename the model folder to DIR.old-N and start anew', flag_values=flags)


def main(argv=None):
    return cli.run(train, define_flags, argv, USAGE)


def train(flags):
    config, origins = configure(flags)
    distribution = use_devices(config, flags.device, 'one' if flags.explain else flags.strategy)
    model_dir = config.model_dir
    if not model_dir:
        raise UserError('--model_dir is required: the folder that the model is kept in, such as runs/my_model.')
    if flags.explain:
        return explain(config, origins, model_dir)
    with contextlib.ExitStack() as held:
        held.enter_context(distribution.lost_workers_told())
        held.enter_context(lack_of_room_told(model_dir))
        with distribution.chief_first():
            build_inputs.check_files(config)
            if distribution.is_chief:
                check_warm_start(flags.init_from, model_dir, flags.restart)
                changes = take_folder(config, model_dir, flags.restart, held)
                build_inputs.build_vocabs(config, os.path.join(model_dir, 'vocab'))
            else:
                changes = []
                check_shared(model_dir)
        check_alike(distribution, 'configuration', settings_key(config))
        held.enter_context(tf.device(flags.device or None))
        return run_loop(config, model_dir, *prepare(config, model_dir, flags.init_from, changes, distribution))


@contextlib.contextmanager
def lack_of_room_told(model_dir):
    """Turns a lack of memory or of room on a disk, and storage that fails, into a message."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        for number in (errno.ENOSPC, errno.EDQUOT):  # which TensorFlow does not tell from a lack of memory
            if os.strerror(number) in error.message:
                raise storage_failed(error.message.splitlines()[0], model_dir) from error
        raise UserError(
            'out of memory: lower train.batch_size (and raise train.accumulate by the same factor to keep the update '
            'as it is), or train.flow.init_sentences if a flow was about to be initialised. TensorFlow says: '
            f'{error.message.splitlines()[0]}'
        ) from error
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        raise storage_failed(error.strerror, error.filename or model_dir) from error


def storage_failed(reason, path):
    return UserError(f'could not read or write {path}: {reason}. Checkpoints that are there stay as they are; make '
                     'room or change permissions and start again.')  # fmt: skip


# Preparing ------------------------------------------------------------------------------------------------------------


def configure(flags):
    """The configuration in force, and where each of its overridden fields comes from."""
    if not flags.config:
        raise UserError('--config is required: the name of a function config_*() such as config_demo.')
    settings = list(flags['set'].value)
    for name in ('precision', 'threads', 'seed', 'model_dir'):
        if flags[name].value not in (None, ''):
            settings.append(f'{name}={flags[name].value}')
    if flags.mode:
        settings.append(f'train.mode={flags.mode}')
    return load_config(flags.config, flags.config_file, settings)


def use_devices(config, device, strategy):
    """Sets threads and memory growth, and returns the `Distribution`; has to come before TensorFlow does anything."""
    for gpu in tf.config.list_physical_devices('GPU'):
        tf.config.experimental.set_memory_growth(gpu, True)
    cli.use_threads(config.threads)
    known = [':'.join(found.name.split(':')[-2:]) for found in tf.config.list_physical_devices()]
    if device and device.upper().removeprefix('/') not in known:
        raise UserError(f'--device {device}: there is no such device here; there are {", ".join(known)}.')
    return choose_distribution(strategy, device)


def check_warm_start(init_from, model_dir, restart):
    """Refuses a warm start that is about to come and cannot, before anything is made or moved."""
    if not init_from or (model_folder.written(model_dir) and not restart):
        return
    model_folder.read_config(init_from)
    model_folder.checkpoint_path(init_from)
    if os.path.exists(model_dir) and os.path.samefile(init_from, model_dir):
        raise UserError(f'--init_from {init_from} is the folder that the new model would be kept in: give it another '
                        '--model_dir.')  # fmt: skip


def take_folder(config, model_dir, restart, held):
    """Locks the model folder for as long as `held` is open; returns what changed in its configuration."""
    restart = restart and os.path.exists(model_dir)
    make_folder(model_dir)
    held.enter_context(model_folder.lock(model_dir))
    if restart:
        cli.note(f'{model_dir} is now {model_folder.move_aside(model_dir)}')
        make_folder(model_dir)
        held.enter_context(model_folder.lock(model_dir))
    return check_resume(model_dir, config)


def check_shared(model_dir):
    if not os.path.isdir(os.path.join(model_dir, 'vocab')):
        raise UserError(f'--model_dir {model_dir}: the first worker has made this folder, and it is not here. Put it '
                        'on a file system that all workers share: they read vocabularies from it.')  # fmt: skip


def make_folder(model_dir):
    try:
        os.makedirs(model_dir, exist_ok=True)
        if not os.access(model_dir, os.W_OK):
            raise PermissionError('no permission to write')
    except OSError as error:
        raise UserError(f'--model_dir {model_dir}: cannot be written ({error}).') from error


def prepare(config, model_dir, init_from, changes, distribution):
    """Vocabularies, data, model, optimizer, and everything as the last checkpoint left it; tells the `changes`."""
    src_vocab, trg_vocab = build_inputs.build_vocabs(config, os.path.join(model_dir, 'vocab'))
    cache_dir = config.data.cache_dir or model_dir.rstrip('/') + '.cache'
    with distribution.scope():
        model = build_model.build_model(config, src_vocab, trg_vocab)
        optimizer = build_optimizer(config.train)
        optimizer.build(model.trainable_variables)
    objective = build_model.build_objective(model, config, trg_vocab)
    unit = objective.length_unit
    inputs = build_inputs.build_parallel_inputs(config, src_vocab, trg_vocab, cache_dir, unit)
    state = TrainingState(len(Position._fields), objective.parts)
    checkpoints = validator = None
    if distribution.is_chief:
        print(inputs.report, flush=True)
        checkpoints = Checkpoints(model_dir, model, optimizer, state, config.train.keep_checkpoints)
        restore(config, model_dir, init_from, changes, model, state, checkpoints, inputs, src_vocab, trg_vocab)
        end = early_end(config.train, objective.phases)
        if end is not None:
            cli.note(f'train.decay_steps={config.train.decay_steps} with train.schedule=cosine: the learning rate is 0 '
                     f'after step {end}, before its phase ends; 0 spreads it over the whole phase.')  # fmt: skip
        dev = build_inputs.build_eval_inputs(config, src_vocab, trg_vocab, unit) if config.data.dev_src else None
        validator = Validator(config, model_dir, model, objective, optimizer, src_vocab, trg_vocab, dev)
    check_alike(distribution, 'training text', ' '.join(inputs.keys))
    distribution.share([*model.variables, *optimizer.variables, *state.variables])
    return distribution, model, objective, optimizer, state, checkpoints, inputs, validator


def restore(config, model_dir, init_from, changes, model, state, checkpoints, inputs, src_vocab, trg_vocab):
    """Brings everything where the last checkpoint left it, or warm weights in, and writes what describes the run."""
    restored = checkpoints.restore()
    if restored:
        print(f'going on from {restored}', flush=True)
    elif init_from:
        told = warm_start(model, config.model, src_vocab, trg_vocab, init_from)
        state.warm.assign(all(what.startswith('taken') for what in told.values()))
    elif config.train.mode == 'rl':
        cli.note('sequence-level training begins with random weights; --init_from names a trained model to begin with.')
    unread = unread_by_rl(config)
    if unread and config.train.mode == 'rl':
        cli.note(f'mode rl does not read {", ".join(unread)}: what is rewarded is the model that writes')
    unread = unread_without_flow(config)
    if unread and config.model.kind != 'flowseq':
        cli.note(f'only flow models read {", ".join(unread)}: nothing changes by it')
    check_same_data(model_dir, inputs.keys if restored else None)
    for change in changes:
        cli.note(change)
    model_folder.write_config(model_dir, config)
    model_folder.write_manifest(model_dir, config.seed, {'keys': inputs.keys, **dataclasses.asdict(inputs.report)})


def check_alike(distribution, what, text):
    """Refuses workers that do not have the same; all of them learn it, and none waits for another that has ended."""
    found = distribution.from_all([zlib.crc32(text.encode())])[:, 0]
    others = [str(worker) for worker in range(distribution.workers) if found[worker] != found[0]]
    if others:
        raise UserError(f'the {what} of worker {", ".join(others)} is not that of worker 0: give all workers the same '
                        'files and flags.')  # fmt: skip


def settings_key(config):
    """The configuration as text, without what may differ from machine to machine."""
    data = dataclasses.replace(config.data, cache_dir='')
    return to_json(dataclasses.replace(config, model_dir='', threads=0, data=data))


# The loop -------------------------------------------------------------------------------------------------------------


def run_loop(config, model_dir, *prepared):
    with StopSignals() as stop:
        return loop(config, model_dir, stop, *prepared)


def loop(config, model_dir, stop, distribution, model, objective, optimizer, state, checkpoints, inputs, validator):
    train = config.train
    phase = None
    chief = distribution.is_chief
    writer = tf.summary.create_file_writer(os.path.join(model_dir, 'tensorboard')) if chief else None
    progress = Progress(config, objective, state, writer, inputs.epochs)
    stops = Stops(distribution, stop, progress.time_up)
    step = int(state.step)
    position = Position(*state.position.numpy().tolist()) if step else None
    stream = iter(inputs.dataset(position, distribution.replicas))

    def save():
        state.position.assign(tf.stack([tf.cast(part, tf.int64) for part in position]))
        if chief:
            checkpoints.save()

    def validate():
        if chief and validator.validate(step, state, writer):
            validator.with_averages(checkpoints.save_best)
        state.validated_step.assign(step)
        distribution.share(state.variables)  # the others wait here for the chief's scores

    finished = progress.limit_reached(step, position) or out_of_patience(train, state)
    if step and (finished or step % train.validate_every == 0) and int(state.validated_step) < step:
        with progress.paused():  # a signal came before it could be done
            validate()
            save()
        finished = finished or out_of_patience(train, state)
    if finished and step:
        cli.note('nothing is left to do; raise the limit with --set to go on')
    while not (finished or stops.signal):
        if phase is None or step == phase.first + phase.steps:
            with progress.paused():
                phase, updater = enter_phase(config, distribution, model, objective, optimizer, state, inputs, step)
        batches = []
        for _ in range(train.accumulate):
            batch, position = next(stream)
            batches.append(batch)
        stops.take_votes(updater(batches, stops.votes()))
        step += 1
        finished = progress.limit_reached(step, position, stops.out_of_time)
        if step % train.log_every == 0 or finished:
            progress.show(step, position, phase)
            stop_when_nonfinite(config, state, model, updater, batches[0])
        with progress.paused():
            if (finished or step % train.validate_every == 0) and not stops.signal:
                validate()
                finished = finished or out_of_patience(train, state)
            if finished or stops.signal or step % train.save_every == 0:
                save()
    distribution.wait_for_all()  # nobody leaves before the chief has saved
    if chief:
        writer.flush()
    if stops.signal:
        raise cli.Interrupted(stops.signal)
    if chief:
        print(f'training ended at step {step}: {finished}', flush=True)
    return 0


def enter_phase(config, distribution, model, objective, optimizer, state, inputs, step):
    """The phase of the next update, begun if it was not yet, and its `Updater`."""
    phase = phase_at(objective, step)
    number = objective.phases.index(phase)
    optimizer.learning_rate = LearningRate(config.train, phase.warmup_steps, phase.steps, phase.rate)
    if int(state.phases_begun) <= number:
        if not bool(state.warm):
            objective.begin(phase, inputs)
            distribution.share(model.variables)
        if number:
            if distribution.is_chief:
                print(f'phase {phase.name} begins at step {step}', flush=True)
            reset(optimizer)
        state.phases_begun.assign(number + 1)
    updater = Updater(
        model, optimizer, state, config.train, config.seed,
        loss=lambda batch, seed, step: objective.loss(phase, batch, seed, step),
        variables=phase.variables, scale_loss=config.precision == 'mixed_float16', distribution=distribution,
    )  # fmt: skip
    return phase, updater


def out_of_patience(train, state):
    """Why validations say that training is over, or '' while they do not."""
    rounds = int(state.rounds_without_gain)
    if train.patience and rounds >= train.patience:
        return f'no better {train.best_by} in {rounds} validations; the best was at step {int(state.best_step)}'
    return ''


def stop_when_nonfinite(config, state, model, updater, batch):
    """Ends a training whose gradients stay non-finite, naming where it began."""
    row = int(state.skipped_in_a_row)
    if row >= config.train.nonfinite_limit:
        batch = batch if isinstance(batch, Batch) else batch[0]
        part = first_nonfinite(model, lambda: updater.loss(Batch(*batch), None, state.step))
        raise UserError(f'the last {row} updates had non-finite gradients and were skipped: {part}. Lower '
                        'train.learning_rate or train.clip_norm, or use precision float32.')  # fmt: skip


class StopSignals:
    """Remembers SIGINT or SIGTERM, so that the loop can save before it ends; a second one ends at once."""

    def __enter__(self):
        self.came, self.before = 0, {}
        if threading.current_thread() is threading.main_thread():  # Python takes handlers nowhere else
            self.before = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number, frame):
        if self.came:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.came = number
        cli.note('saving after this step; a second signal ends at once')


class Progress:
    """The progress line, its scalars, and the limits of a run."""

    def __init__(self, config, objective, state, writer, epochs):
        self.train, self.objective, self.state = config.train, objective, state
        self.writer, self.epochs = writer, epochs
        self.started = self.since = time.monotonic()
        before = state.read_totals()  # of an earlier process
        self.tokens_before, self.updates_before = before.tokens, before.updates

    @contextlib.contextmanager
    def paused(self):
        """Leaves what happens inside out of the rate."""
        began = time.monotonic()
        yield
        self.since += time.monotonic() - began

    def time_up(self):
        """Whether `train.max_minutes` have passed."""
        return bool(self.train.max_minutes) and time.monotonic() - self.started >= 60 * self.train.max_minutes

    def limit_reached(self, step, position, out_of_time=False):
        """Which limit of the configuration is reached, or ''."""
        train = self.train
        if step >= train.max_steps:
            return f'train.max_steps={train.max_steps}'
        if train.max_epochs and position is not None and self.epochs(position) >= train.max_epochs:
            return f'train.max_epochs={train.max_epochs:g}'
        if out_of_time:
            return f'train.max_minutes={train.max_minutes:g}'
        return ''

    def show(self, step, position, phase):
        now = time.monotonic()
        totals = self.state.take_totals()
        skipped = int(self.state.skipped)
        if totals.updates and self.writer:
            elapsed = max(now - self.since, 1e-9)
            details = self.objective.report(phase, totals, step)
            scalars = {
                'loss': totals.loss / getattr(totals, self.train.divisor),
                'nll': totals.nll / getattr(totals, self.objective.nll_unit),
                **details,
                'target_tokens_per_second': (totals.tokens - self.tokens_before) / elapsed,
                'gradient_norm': totals.gradient_norm / totals.updates,
            }
            left = (self.train.max_steps - step) * elapsed / max(totals.updates - self.updates_before, 1)
            if self.train.max_minutes:
                left = min(left, 60 * self.train.max_minutes - (now - self.started))
            print(
                f'step {step}  epoch {self.epochs(position):.2f}  loss {scalars["loss"]:.4f}  '
                f'nll {scalars["nll"]:.4f}  '
                + ''.join(f'{name} {value:.4f}  ' for name, value in details.items())
                + f'gradient {scalars["gradient_norm"]:.2f}  '
                f'{scalars["target_tokens_per_second"]:,.0f} target tokens/s  '
                f'ETA {left / 60:.0f} min' + (f'  skipped {skipped}' if skipped else ''),
                flush=True,
            )
            with self.writer.as_default(step=step):
                for name, value in scalars.items():
                    tf.summary.scalar(f'train/{name}', value)
        self.since, self.tokens_before, self.updates_before = now, 0.0, 0.0


if __name__ == '__main__':
    sys.exit(main(sys.argv))
