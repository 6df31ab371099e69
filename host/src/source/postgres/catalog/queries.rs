//! The questions. All names are found: `search_path` is pinned to `pg_catalog`.

/// Name, value in the base unit, and whether another value waits for a restart.
pub(super) const SETTINGS: &str = "
    SELECT name, setting, pending_restart FROM pg_settings
    WHERE name IN ('wal_level', 'rds.logical_replication', 'max_replication_slots', 'max_wal_senders',
        'max_slot_wal_keep_size', 'wal_sender_timeout', 'hot_standby_feedback', 'block_size')";

/// One row. A role of Amazon RDS replicates by membership.
pub(super) const SERVER_AND_ROLE: &str = "
    SELECT current_setting('server_version_num')::int4, getdatabaseencoding()::text, pg_is_in_recovery(),
        (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_stat_replication),
        r.rolname::text, r.rolsuper,
        r.rolreplication OR EXISTS (
            SELECT FROM pg_roles g WHERE g.rolname = 'rds_replication' AND pg_has_role(r.oid, g.oid, 'MEMBER')),
        has_database_privilege(current_database(), 'CREATE')
    FROM pg_roles r WHERE r.rolname = current_user";

/// One row; not everybody may ask.
pub(super) const SYSTEM_IDENTIFIER: &str = "SELECT system_identifier::text FROM pg_control_system()";

/// All relations of users that a pattern may name. Those of other sessions' temporary schemas are none of ours.
pub(super) const RELATIONS: &str = "
    SELECT c.oid, n.nspname::text, c.relname::text, c.relkind, c.relpersistence, c.relreplident,
        (SELECT i.inhparent FROM pg_inherits i WHERE i.inhrelid = c.oid AND c.relispartition)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm')
        AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
    ORDER BY n.nspname, c.relname";

/// A row a relation.
pub(super) const DETAILS: &str = "
    SELECT c.oid, has_schema_privilege(c.relnamespace, 'USAGE'), pg_has_role(c.relowner, 'USAGE'),
        pg_get_userbyid(c.relowner)::text, row_security_active(c.oid), c.reltuples::float8,
        CASE WHEN c.relkind = 'r' THEN pg_relation_size(c.oid) END
    FROM pg_class c WHERE c.oid = ANY ($1)";

/// A row a column. What was `plain` only since recently may still be stored elsewhere, hence the type's own storage.
pub(super) const COLUMNS: &str = "
    SELECT a.attrelid, a.attname::text, a.attnum, a.atttypid, a.atttypmod, format_type(a.atttypid, a.atttypmod),
        a.attnotnull, a.attgenerated <> '', a.attstorage <> 'p' OR t.typstorage <> 'p',
        COALESCE(has_column_privilege(a.attrelid, a.attnum, 'SELECT'), false)
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attrelid, a.attnum";

/// A row a unique index: its key columns without those that are merely included.
pub(super) const UNIQUE_INDEXES: &str = "
    SELECT i.indrelid, c.relname::text, i.indisprimary, i.indisreplident, i.indimmediate,
        i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL,
        ARRAY(SELECT k FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS u (k, place)
              WHERE place <= i.indnkeyatts ORDER BY place)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE i.indrelid = ANY ($1) AND i.indisunique
    ORDER BY i.indrelid, c.relname";

/// One row, or none. The catalogue as of transactions before the slot's `catalog_xmin` is what the slot sees.
pub(super) const PUBLICATION: &str = "
    SELECT pg_has_role(p.pubowner, 'USAGE'), pg_get_userbyid(p.pubowner)::text, p.puballtables, p.pubinsert,
        p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot,
        COALESCE((SELECT age(p.xmin) <= age(s.catalog_xmin) FROM pg_replication_slots s WHERE s.slot_name = $2), false)
    FROM pg_publication p WHERE p.pubname = $1";

/// What is published in effect.
pub(super) const PUBLISHED_TABLES: &str = "
    SELECT c.oid, p.attnames::text[], p.rowfilter
    FROM pg_publication_tables p
        JOIN pg_namespace n ON n.nspname = p.schemaname
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
    WHERE p.pubname = $1";

/// The same of a server without column lists and row filters.
pub(super) const PUBLISHED_TABLES_BEFORE_15: &str = "
    SELECT c.oid, NULL::text[], NULL::text
    FROM pg_publication_tables p
        JOIN pg_namespace n ON n.nspname = p.schemaname
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
    WHERE p.pubname = $1";

/// One row, or none.
pub(super) const SLOT: &str = "
    SELECT s.plugin::text, s.database::text, s.active_pid, a.application_name, s.wal_status, s.safe_wal_size,
        pg_wal_lsn_diff(
            CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END,
            s.restart_lsn)::int8,
        s.confirmed_flush_lsn::text, s.restart_lsn::text, s.two_phase
    FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
    WHERE s.slot_name = $1";

/// One row.
pub(super) const WRITTEN: &str = "
    SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END)::text";

/// A row a process that was told to end. Materialized: a condition on it alone could be looked at before the join.
pub(super) const END_READER: &str = "
    WITH reader AS MATERIALIZED (
        SELECT a.pid FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid
        WHERE s.slot_name = $1 AND a.application_name = $2)
    SELECT pid, pg_terminate_backend(pid) FROM reader";

/// Transactions with a number of their own, in whichever database: a new slot waits for each of them.
pub(super) const WRITERS: &str = "
    SELECT pid, COALESCE(application_name, ''), EXTRACT(EPOCH FROM now() - xact_start)::float8 AS age
    FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
    UNION ALL
    SELECT NULL, gid, EXTRACT(EPOCH FROM now() - prepared)::float8 FROM pg_prepared_xacts
    ORDER BY age DESC NULLS LAST LIMIT 20";

/// The same of those for which one process waits. Prepared transactions have no process: 0 stands for them.
pub(super) const HOLDING_UP: &str = "
    SELECT NULLIF(b.pid, 0), COALESCE(a.application_name, 'a prepared transaction'),
        EXTRACT(EPOCH FROM now() - a.xact_start)::float8
    FROM unnest(pg_blocking_pids($1)) AS b (pid) LEFT JOIN pg_stat_activity a ON a.pid = b.pid";

/// Types with their elements and bases, all the way down. `name`, `point` and their like have a subscript type but
/// are no arrays, and the vectors of the catalogue are not written like arrays.
pub(super) const TYPES: &str = "
    WITH RECURSIVE used (oid) AS (
        SELECT unnest($1::oid[])
        UNION
        SELECT part FROM used u JOIN pg_type t ON t.oid = u.oid
            CROSS JOIN LATERAL unnest(ARRAY[t.typelem, t.typbasetype]) AS part
        WHERE part <> 0)
    SELECT t.oid, t.typname::text, n.nspname::text, t.typtype, t.typcategory,
        CASE WHEN t.typcategory = 'A' AND t.typname NOT IN ('int2vector', 'oidvector') THEN t.typelem ELSE 0::oid END,
        t.typbasetype, t.typtypmod, t.typdelim
    FROM used u JOIN pg_type t ON t.oid = u.oid JOIN pg_namespace n ON n.oid = t.typnamespace
    ORDER BY t.oid";
