-- Words and ports by six hours too: a day of events has up to 65,536 rows of an hour for its ports.
create table sonde_store.event_words_6h (
    time timestamptz not null,
    type int not null,
    field smallint not null,
    word int not null,
    n bigint not null,
    primary key (field, type, time, word))
    partition by range (time);
comment on table sonde_store.event_words_6h is 'Events of each six hours, of UTC, as in event_words_1h, without stacks';
comment on column sonde_store.event_words_6h.type is '0: all types together; there are no others here';
comment on column sonde_store.event_words_6h.word is '0: has no such word; -1: has no port';

do $$
declare
    leaf record;
begin
    for leaf in
        select child.relname, pg_get_expr(child.relpartbound, child.oid) as bounds
        from pg_inherits i join pg_class child on child.oid = i.inhrelid
        where i.inhparent = 'sonde_store.event_words_1h'::regclass
    loop
        execute format('create table sonde_parts.%I partition of sonde_store.event_words_6h %s',
                       replace(leaf.relname, '_1h_', '_6h_'), leaf.bounds);
    end loop;
end $$;
insert into sonde_store.event_words_6h (time, type, field, word, n)
select to_timestamp(floor(extract(epoch from time) / 21600) * 21600), 0, field, word, sum(n)
from sonde_store.event_words_1h where type = 0 and field <= 5 group by 1, 3, 4 order by 3, 1, 4;
