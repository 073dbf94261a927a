"""Evaluation: restoration, questions and latency, and the reports of their figures."""
