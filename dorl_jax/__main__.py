"""The command `dorl-jax`, and `python -m dorl_jax`, the same."""

import sys

from dorl_jax.allocator import keep_working_memory, use_one_heap

_TRAININGS = ("run", "finetune-sam", "train-cae", "baselines")


def main() -> int:
    """Entry point; see `cli.main`."""
    if sys.argv[1:2] and sys.argv[1] in _TRAININGS:
        use_one_heap()
        keep_working_memory()
    from dorl_jax import cli  # only now: its imports start threads

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
