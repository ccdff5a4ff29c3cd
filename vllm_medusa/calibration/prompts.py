# SPDX-License-Identifier: Apache-2.0
"""Everyday prompts to measure tokens per step on, when the user gives none."""

PROMPTS = (
    "Explain to a ten-year-old why the sky is blue.",
    "Write a polite e-mail asking a landlord to repair a broken heater.",
    "Write a Python function that checks whether a string is a palindrome.",
    "What are the main differences between a bicycle and a motorcycle?",
    "A train leaves at 9:40 and arrives at 13:05. How long is the journey?",
    "Tell a short story about a lighthouse keeper who finds a message in a bottle.",
    "List five healthy breakfasts and say why each of them is healthy.",
    "Summarise how a bill becomes a law in a parliamentary democracy.",
)
