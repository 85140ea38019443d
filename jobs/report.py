import sys

from transfergrid.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
