"""Files that carry the service to a cluster (see README.md here): they call the project's commands and nothing more."""
