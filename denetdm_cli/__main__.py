"""`python -m denetdm_cli` is the same program as `denetdm`."""

from denetdm_cli.cli.app import main

if __name__ == "__main__":
    main()
