import sys

from transfergrid.commands.launch import main

if __name__ == "__main__":
    sys.exit(main())
