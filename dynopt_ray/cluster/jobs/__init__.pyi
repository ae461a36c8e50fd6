from .client import ClusterJob, JobClient

__all__ = ["ClusterJob", "JobClient"]
