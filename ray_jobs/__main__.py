"""`python -m ray_jobs VERB …`, for `ray job submit`."""

import sys

from ray_jobs.cli import main

sys.exit(main())
