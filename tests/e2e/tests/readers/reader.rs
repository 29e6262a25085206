//! What role sonde_reader may do, asked of a database in which every probe has its tables and views.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use crate::system::System;

pub(crate) fn check(system: &System) -> Result<()> {
    let names = |script: &str| -> Result<BTreeSet<String>> { Ok(system.psql(script)?.into_iter().collect()) };
    let readable = names(
        "select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and n.nspname !~ '^(pg_|information_schema$)' \
         and has_schema_privilege(n.oid, 'usage') and case c.relkind when 'S' then has_sequence_privilege(c.oid, 'select') \
         else has_table_privilege(c.oid, 'select') or has_any_column_privilege(c.oid, 'select') end;\n",
    )?;
    let views = names("select 'sonde.' || viewname from pg_views where schemaname = 'sonde';\n")?;
    ensure!(
        readable == views,
        "not the views: {:?}",
        readable.symmetric_difference(&views)
    );
    for view in [
        "sonde.events",
        "sonde.gaps",
        "sonde.flow",
        "sonde.packetloss",
        "sonde.changes",
    ] {
        ensure!(views.contains(view), "{view} is not there: {views:?}");
    }
    let writable = names(
        "select c.oid::regclass from pg_class c where c.relkind in ('r', 'p', 'v') \
         and c.relnamespace <> 'pg_catalog'::regnamespace and has_table_privilege(c.oid, 'insert, update, delete, truncate');\n",
    )?;
    ensure!(writable.is_empty(), "may write {writable:?}");
    let functions = names(
        "select p.oid::regprocedure from pg_proc p where p.prosecdef and has_function_privilege(p.oid, 'execute');\n",
    )?;
    ensure!(functions.is_empty(), "may run with the rights of others: {functions:?}");
    let settings = system.psql(
        "show statement_timeout;\nshow lock_timeout;\nshow idle_in_transaction_session_timeout;\n\
         show default_transaction_read_only;\n",
    )?;
    ensure!(settings == ["30s", "5s", "1min", "on"], "{settings:?}");
    for refused in [
        "select count(*) from sonde_store.events;\n",
        "create table mine (a int);\n",
        "set default_transaction_read_only = off; create table public.mine (a int);\n",
        "set default_transaction_read_only = off; create view sonde.mine as select 1;\n",
        "select pg_read_file('/etc/passwd');\n",
        "copy (select 1) to program 'true';\n",
    ] {
        ensure!(system.psql(refused).is_err(), "may: {refused}");
    }
    Ok(())
}
