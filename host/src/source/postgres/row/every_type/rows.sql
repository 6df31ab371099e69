-- What rows.copy and stream.hex were recorded of, on PostgreSQL 15.18 with the settings that Tidemill pins:
-- datestyle=ISO timezone=UTC intervalstyle=iso_8601 extra_float_digits=3 bytea_output=hex lc_monetary=C.
-- No statement of it is run by the tests.
CREATE EXTENSION citext; CREATE EXTENSION hstore;
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN price AS numeric(12,3);
CREATE DOMAIN ints AS int[];
create table every_type (
 id int primary key, bo bool, i2 int2, i4 int4, i8 int8, oi oid, f4 float4, f8 float8, nu numeric, np numeric(10,2), mo money,
 ch char(5), vc varchar(20), tx text, na name, qc "char", ci citext, by bytea, da date, ts timestamp, tz timestamptz, ti time, tt timetz, iv interval,
 uu uuid, js json, jb jsonb, ai int[], at text[], ab bytea[], aj jsonb[], az timestamptz[], af float8[], ax box[], en mood, dm price, di ints[], co pair,
 ir int4range, mr int4multirange, pt point, ip inet, cr cidr, ma macaddr, bi bit(3), vb varbit, xm xml, tv tsvector, ls pg_lsn, hs hstore, ve int2vector, am money[], xi xid8);
create publication pt for table every_type;
select pg_create_logical_replication_slot('t','pgoutput');
insert into every_type values (1,true,-32768,2147483647,'-9223372036854775808',4294967295,1.1,'1.7976931348623157e308','12345678901234567890123456789.123456789',99.5,'-1234.56',
 'ab','é"\','line
feed	tab',  'nm','x','CiTexT','\xdeadbeef','2024-02-29','2024-02-29 12:34:56.123456','2024-02-29 12:34:56.5+02','24:00:00','00:00:00-15:59','1 year 2 mons -3 days 04:05:06.7',
 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', E'{"a": 1.50,\n "a": "x\\ny",\r\n "b": [1, 2]}', '{"a": 1.50, "b": 123456789012345678901234567890}', '{1,NULL,3}', array['a,b','q"x',null,'NULL','','back\slash','{}','two words'], array['\x6162','\x'::bytea], array['{"a": [1, "x\"y"]}','null',null]::jsonb[], array['2024-02-29 12:34:56+02',null]::timestamptz[], '{1.5,NaN,-Infinity}', '{(1,1),(0,0);(2,2),(1,1)}','ok',12.5,array['{1,2}','{3}']::ints[], row(1,'a,b "c"'),
 '[1,10)', '{[1,3),[5,7)}', '(1.5,-2)', '10.0.0.1/8', '10.0.0.0/8', '08:00:2b:01:02:03', '101', '1101', '<a b="c"/>', 'a fat cat', '16/B374D848', 'a=>1,b=>NULL', '1 2 3', '{"$1,234.50",2}', '18446744073709551615');
insert into every_type (id,f4,f8,nu,np,da,ts,tz,ch,tx,vc,by,ai,at,jb,js,qc,vb,iv) values (2,'NaN','Infinity','NaN','NaN','infinity','-infinity','infinity','','','','\x','{}','{}','null','null','','','0');
insert into every_type (id,f8,nu,da,ts,tz,ai,ti,iv,f4,i8) values (3,'-Infinity','-Infinity','0044-03-15 BC','0044-03-15 10:00:00 BC','12024-01-01 00:00:00+00','[2:3]={7,8}','23:59:59.999999','-1 mons +2 days -03:04:05','-0','9223372036854775807');
insert into every_type (id,f8,nu,da,ts,tz,at,ai,f4) values (4,'5e-324','1e-20','9999-12-31','0001-01-01 00:00:00','1890-01-01 00:00:00+00','{{a,b},{c,NULL}}','{{{1},{2}},{{3},{4}}}','3.4028235e38');
insert into every_type (id) values (5);
COPY every_type TO STDOUT;
SELECT encode(data, 'hex') FROM pg_logical_slot_peek_binary_changes('t', NULL, NULL, 'proto_version', '1', 'publication_names', 'pt') WHERE get_byte(data, 0) IN (ascii('R'), ascii('I'));
