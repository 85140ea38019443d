import sys

from transfergrid.commands.status import main

if __name__ == "__main__":
    sys.exit(main())
