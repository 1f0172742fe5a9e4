"""The command `dorl-jax`, and `python -m dorl_jax`, the same."""

import sys

from dorl_jax.allocator import keep_working_memory, use_one_heap

_TRAININGS = ("run", "finetune-sam", "train-cae", "baselines")
_EMBEDDINGS = ("embed", "extract")


def main() -> int:
    """Entry point; see `cli.main`."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command in _TRAININGS or command in _EMBEDDINGS:
        use_one_heap()
    if command in _TRAININGS:  # embeddings keep it once they have read the models
        keep_working_memory()
    from dorl_jax import cli  # only now: its imports start threads

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
