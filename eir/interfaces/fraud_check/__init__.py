"""IMEI Fraud Check: the status of a device for banks and shops, over HTTP."""
