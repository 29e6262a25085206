-- Each stream of a spool claims its cursor, and only the newest may store. So what the answer to its Hello does not cover
-- will never be stored from an earlier stream, through whichever aggregator that went, and the collector can count what it
-- dropped in the meantime.
alter table sonde_store.cursors add column claim bigint not null default 0;
comment on column sonde_store.cursors.claim is 'How often a stream of this spool has begun; batches of earlier ones are not stored';
