-- Events in short by what else they can be counted by: words and ports, and addresses. `type` 0 is all types together.
create table sonde_store.event_words_1h (
    time timestamptz not null,
    type int not null,
    field smallint not null,
    word int not null,
    n bigint not null,
    primary key (field, type, time, word))
    partition by range (time);
comment on table sonde_store.event_words_1h is 'Events of each hour by interface (field 1), process name (2), state (3), as words, and by destination port (4)';
comment on column sonde_store.event_words_1h.word is '0: has no such word; -1: has no port';

create table sonde_store.event_ends_1h (
    time timestamptz not null,
    type int not null,
    field smallint not null,
    address inet not null,
    n bigint not null,
    primary key (field, type, time, address))
    partition by range (time);
comment on table sonde_store.event_ends_1h is 'Events of each hour by source (field 1) and destination (2)';
comment on column sonde_store.event_ends_1h.address is '::/0: has no address';

-- Events that were summed up before there were these two are not in them.
alter table sonde_store.event_digest add values_after bigint not null default 0;
update sonde_store.event_digest set values_after = through;
comment on column sonde_store.event_digest.values_after is 'Events above this id and up to `through` are in event_words_1h and event_ends_1h';
