import sys

from transfergrid.commands.run_phase import main

if __name__ == "__main__":
    sys.exit(main())
