"""What stands between unlike meshes: resharding and the bridge. Rank side."""
