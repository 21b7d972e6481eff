"""Deltas: releases that hold only what differs from the release that they are laid over."""
