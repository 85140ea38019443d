import sys

from transfergrid.commands.doctor import main

if __name__ == "__main__":
    sys.exit(main())
