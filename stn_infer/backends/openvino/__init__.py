"""OpenVINO on the CPU: ``runtime`` imports it, ``backend`` runs models, ``extension`` gives it this package's ops."""
