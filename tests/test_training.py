"""The training loop, on a network of one layer that fits a line."""

import numpy as np
import pytest

from edge_app.errors import EdgeAppError, InputError
from tools.training import STATE_FILE, discard, learning_rate, saying_how_to_go_on, train

keras = pytest.importorskip("keras", reason="training needs the tools extra")

STEPS = 12


def line(peak=0.05, steps=STEPS):
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.Adam(learning_rate(peak, steps)), loss="mse")
    return model


def batch_at(step):
    inputs = np.random.default_rng([7, step]).normal(size=(8, 2)).astype(np.float32)
    return inputs, inputs @ np.array([[1.0], [-2.0]], np.float32)


class Killed(Exception):
    pass


def until(last):
    """Batches up to a step; the next one kills the training."""

    def batches(step):
        if step > last:
            raise Killed
        return batch_at(step)

    return batches


def weights(model):
    return [value.tolist() for value in model.get_weights()]


def test_a_killed_training_ends_as_if_it_had_not_been_killed(tmp_path):
    held = np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32)
    truth = held @ np.array([[1.0], [-2.0]], np.float32)

    def run(model, batches, state):
        return train(
            model,
            batches,
            STEPS,
            title="line",
            validate=lambda: float(np.mean((model.predict(held, verbose=0) - truth) ** 2)),
            check_every=3,
            state=state,
            settings={"size": (2, 3)},
            progress=False,
        )

    whole = line()
    wanted = run(whole, batch_at, None)
    # A checkpoint is written at step 1 and then by the clock: two kills, both go on from there.
    for last in (1, 1):
        with pytest.raises(Killed):
            run(line(), until(last), tmp_path / "state")
    again = line()
    got = run(again, batch_at, tmp_path / "state")
    assert got.resumed_from == 1
    assert weights(again) == weights(whole)
    assert got.best_step == wanted.best_step and got.best == wanted.best
    for row in (*got.history, *wanted.history):
        del row["seconds"]
    assert got.history == wanted.history


def test_a_finished_training_is_taken_as_it_is(tmp_path):
    first = line()
    train(first, batch_at, STEPS, title="line", state=tmp_path, progress=False)
    again = line()
    got = train(again, until(0), STEPS, title="line", state=tmp_path, progress=False)
    assert got.resumed_from == STEPS and weights(again) == weights(first)


def test_the_best_weights_are_kept_and_patience_ends():
    model = line()
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    seen = {}

    def validate():
        loss = next(losses)
        seen[loss] = weights(model)
        return loss

    got = train(
        model,
        batch_at,
        STEPS,
        title="line",
        validate=validate,
        check_every=2,
        patience=2,
        progress=False,
    )
    assert got.best_step == 4 and got.best == 1.0
    assert len(got.history) == 8
    assert weights(model) == seen[1.0]
    assert [row["step"] for row in got.history if "held_out" in row] == [2, 4, 6, 8]


def test_patience_is_remembered_over_a_kill(tmp_path):
    def run(batches, losses):
        return train(
            line(),
            batches,
            STEPS,
            title="line",
            validate=lambda: next(losses),
            check_every=2,
            patience=3,
            state=tmp_path,
            progress=False,
        )

    got = run(batch_at, iter([1.0, 2.0, 2.0, 2.0]))
    assert len(got.history) == 8 and got.best_step == 2
    assert run(until(0), iter([])).resumed_from == 8


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    train(line(), batch_at, 2, title="line", state=tmp_path, settings={"a": 1}, progress=False)
    with pytest.raises(InputError, match="had a 1, now it is 2"):
        train(line(), batch_at, 2, title="line", state=tmp_path, settings={"a": 2}, progress=False)


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"", lambda data: b"x"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    train(line(), batch_at, 2, title="line", state=tmp_path, progress=False)
    path = tmp_path / STATE_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=f"{STATE_FILE}: not a whole checkpoint"):
        train(line(), batch_at, 2, title="line", state=tmp_path, progress=False)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    train(line(), batch_at, 2, title="line", state=tmp_path, progress=False)
    other = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), keras.layers.Dense(1)])
    other.compile(optimizer=keras.optimizers.Adam(learning_rate(0.1, 2)), loss="mse")
    with pytest.raises(InputError, match="holds another network"):
        train(other, batch_at, 2, title="line", state=tmp_path, progress=False)


def test_a_loss_that_is_no_number_ends_in_a_sentence(tmp_path):
    def wrong(step):
        inputs, targets = batch_at(step)
        return inputs, targets * (np.nan if step == 3 else 1)

    with pytest.raises(InputError, match="line, step 3: the loss is nan; training has diverged"):
        train(line(), wrong, STEPS, title="line", state=tmp_path / "state", progress=False)
    # To go on from its checkpoint would diverge again.
    assert not (tmp_path / "state").exists()


def test_the_keyboard_stops_it_and_says_how_to_go_on(tmp_path):
    def pressed(step):
        if step == 3:
            raise KeyboardInterrupt
        return batch_at(step)

    state = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt, match="state holds the training: add --resume"):
        with saying_how_to_go_on(state):
            train(line(), pressed, STEPS, title="line", state=state, progress=False)
    with pytest.raises(KeyboardInterrupt, match="^$"), saying_how_to_go_on(tmp_path / "none"):
        train(line(), pressed, STEPS, title="line", progress=False)


def test_a_checkpoint_is_discarded_and_nothing_beside_it(tmp_path):
    train(line(), batch_at, 2, title="line", state=tmp_path, progress=False)
    (tmp_path / "mine").touch()
    discard(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "mine").unlink()
    train(line(), batch_at, 2, title="line", state=tmp_path, progress=False)
    discard(tmp_path)
    assert not tmp_path.exists()


def test_a_file_in_the_place_of_the_folder_is_one_sentence(tmp_path):
    (tmp_path / "state").touch()
    with pytest.raises(EdgeAppError, match="step 1 cannot be written"):
        train(line(), batch_at, 2, title="line", state=tmp_path / "state", progress=False)


def test_a_held_out_loss_that_is_no_number_ends_in_a_sentence():
    with pytest.raises(InputError, match="step 5: the held-out loss is inf"):
        train(
            line(),
            batch_at,
            STEPS,
            title="line",
            validate=lambda: np.inf,
            check_every=5,
            progress=False,
        )


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path):
    resource = pytest.importorskip("resource", reason="limits of file sizes are POSIX")
    state = tmp_path / "state"
    with pytest.raises(Killed):
        train(line(), until(1), STEPS, title="line", state=state, progress=False)
    before = (state / STATE_FILE).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A real refusal by the kernel: no file may grow beyond 100 bytes.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(EdgeAppError, match=r"step 12 cannot be .*one before it is kept"):
            train(line(), batch_at, STEPS, title="line", state=state, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (state / STATE_FILE).read_bytes() == before
    assert [path.name for path in state.iterdir()] == [STATE_FILE]


def test_the_rate_rises_and_falls():
    rate = learning_rate(1.0, 100, warmup_steps=10)
    values = [float(rate(step)) for step in (0, 10, 55, 100)]
    assert values[0] == pytest.approx(0.1) and values[1] == pytest.approx(1.0)
    assert values[2] == pytest.approx(0.5, abs=0.01) and values[3] == pytest.approx(0.0, abs=1e-6)
