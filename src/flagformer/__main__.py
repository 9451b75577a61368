"""`python -m flagformer`: the command, in the form that `torchrun` starts."""

from flagformer.cli.main import main

if __name__ == "__main__":
    main()
