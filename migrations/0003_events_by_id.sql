-- "Events above the last one I saw", in the order of their ids: what every open event stream asks again and again,
-- and asks of all days, since an event may be stored long after it happened. Ids ascend in each partition as rows are
-- appended, so a block range index of a few kilobytes answers it and costs the writer nothing.
create index on sonde_store.events using brin (id) with (pages_per_range = 32, autosummarize = on);
