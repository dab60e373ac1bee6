"""Who sees an open forward pass."""

import threading

import tensorflow as tf

from segtrain.models import step_context


def open_pass(step):
    return step_context.forward_pass(
        step=tf.constant(step, tf.int64), keys=tf.constant([1], tf.int64), weights=tf.constant([1.0])
    )


def test_the_innermost_open_pass_is_current():
    assert step_context.current() is None
    with open_pass(1):
        with open_pass(2):
            assert int(step_context.current().step) == 2
        assert int(step_context.current().step) == 1
    assert step_context.current() is None


def test_an_error_inside_closes_the_pass():
    try:
        with open_pass(1):
            raise KeyError
    except KeyError:
        assert step_context.current() is None


def test_replica_threads_do_not_see_each_others_pass():
    seen = []
    with open_pass(1):
        thread = threading.Thread(target=lambda: seen.append(step_context.current()))
        thread.start()
        thread.join()
    assert seen == [None]
