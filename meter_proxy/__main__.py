"""`python -m meter_proxy` is the command `meter-proxy`."""

from meter_proxy.cli.main import main

if __name__ == "__main__":
    main()
