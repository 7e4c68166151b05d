"""Files that carry the service to a cluster (see README.md here): they call the project's commands and nothing more.

- `submit`: `ray job submit` with a look at what is uploaded and the commit it comes from.
"""
