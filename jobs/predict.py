import sys

from transfergrid.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
