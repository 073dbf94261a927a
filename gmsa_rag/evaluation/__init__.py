"""Evaluation: restoration and questions, and the reports of their figures."""
