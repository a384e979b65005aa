"""`python -m alpharl_hub` is `alpharl-hub`."""

from alpharl_hub.cli import main

main(prog_name="alpharl-hub")
