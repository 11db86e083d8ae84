"""The report of a sweep: verdict, next steps, leaderboard, charts and figures on one HTML page."""
