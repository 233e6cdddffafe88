"""Setting Meterline up and operating it: `python -m infra.cli --help`."""
