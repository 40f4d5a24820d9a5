"""`python -m penchant`."""

from penchant.cli.main import main

raise SystemExit(main())
