"""`python -m vfassoc` (and `torchrun -m vfassoc`) is the `vfassoc` command. Plumbing, by hand (not exported)."""
import sys

from vfassoc.cli import main

sys.exit(main())
