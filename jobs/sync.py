import sys

from transfergrid.commands.sync import main

if __name__ == "__main__":
    sys.exit(main())
