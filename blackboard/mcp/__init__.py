"""The board as an MCP server: ``mcp-agent-swarm`` gives an agent that speaks MCP a place on it."""
