"""HTTP servers, HTTP clients and access control. They are independent of the content of requests and responses."""
