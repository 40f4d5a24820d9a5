"""`python -m penchant`."""

from penchant.cli import main

raise SystemExit(main())
