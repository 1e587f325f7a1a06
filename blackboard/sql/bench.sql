-- name: create_database
-- The command that makes a database of that name; PostgreSQL quotes the name.
SELECT format('CREATE DATABASE %I', CAST(:name AS text)) AS command;

-- name: drop_database
-- The command that drops it, whoever is connected.
SELECT format('DROP DATABASE IF EXISTS %I WITH (FORCE)', CAST(:name AS text)) AS command;

-- name: server_settings
-- What of the server matters to a measurement.
SELECT current_setting('server_version') AS server_version, current_setting('fsync') AS fsync,
       current_setting('synchronous_commit') AS synchronous_commit, current_setting('shared_buffers') AS shared_buffers;
