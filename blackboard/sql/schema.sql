-- name: schema_version
-- The revision that the database is at; fails where there is no blackboard.
SELECT version_num AS revision FROM blackboard.schema_version;

-- name: needs_adoption
-- Whether this database was restored from a dump of another cluster.
SELECT blackboard.needs_adoption() AS needed;

-- name: adopt
-- Raises the transaction offset above the stored history and gives the history a new identity. Owner only.
SELECT blackboard.adopt() AS tx_offset;
