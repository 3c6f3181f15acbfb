"""Feeds: they read an installation's topics, or a recording, into a history."""

from tamiyo.streams.watch.feeds.feed import Feed
from tamiyo.streams.watch.feeds.recording_feed import RecordingFeed
from tamiyo.streams.watch.feeds.topic_feed import TopicFeed

__all__ = ["Feed", "RecordingFeed", "TopicFeed"]
