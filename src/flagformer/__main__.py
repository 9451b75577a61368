"""`python -m flagformer`: the command, in the form that `torchrun` starts."""

from flagformer.lab.cli.main import main

if __name__ == "__main__":
    main()
