package errcode

import (
	"fmt"
	"strings"
)

// Advice is what a person needs to know of a code: how it comes about, and how to get past it.
type Advice struct {
	Cause string
	Fix   string
}

// Advice returns what there is to know of c, and false for a code this version does not know.
func (c Code) Advice() (Advice, bool) {
	a, ok := advice[c]
	return a, ok
}

// Explain returns all there is to know of a code, for people, in lines; ok is false for a code that is not known.
func Explain(c Code) (text string, ok bool) {
	row, ok := Lookup(c)
	if !ok {
		return "", false
	}
	a := advice[c]
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", row.Code, row.Text)
	fmt.Fprintf(&b, "cause    %s\nfix      %s\n", a.Cause, a.Fix)
	fmt.Fprintf(&b, "retry    %s\nrecord   %s\n", row.retry(), row.record())
	if row.Closes {
		b.WriteString("link     the server closes the connection after it\n")
	}
	return b.String(), true
}

func (i Info) retry() string {
	if i.Retriable {
		return "yes: the same request may succeed later"
	}
	return "no: the same request fails again until something is changed"
}

func (i Info) record() string {
	if i.Outcome == Unknown {
		return "unknown: the record may appear in the log; reading it tells"
	}
	return "certainly not written"
}

// advice has a row for each row of Table, in its order.
var advice = map[Code]Advice{
	BadVerb: {"The first word of a line is no verb of this server: a misspelling, a verb of a newer version, or a payload that was longer than announced, so that its rest was read as a line.",
		"HELP lists the verbs. Where the word is part of your data, correct the size in front of it."},
	BadArgs: {"A verb came with too few or too many arguments, or with one that it cannot read.",
		"HELP VERB shows what it takes. Names and addresses hold no blanks; what has blanks in it belongs into a payload."},
	BadSize: {"The number of bytes that was announced is no number, is above the server's limits.payload, or is not how many bytes came before the line end.",
		"Count bytes, not characters, and end the payload in a line end. Larger records need a higher limits.payload. By hand, SEND needs no size."},
	LineTooLong: {"A line without its payload is longer than limits.control_line, 4 KiB unless configured.",
		"Put what is long into the payload: keys into the Key header of HPUB, many partitions of a FETCH into its JSON form. Or raise limits.control_line."},
	BadJSON: {"The argument of CONNECT, or the body of a FETCH, is not the JSON that is expected.",
		"Send one JSON object with the fields that the protocol names; the message says where it stopped making sense."},
	BadAddress: {"An address is written in a way that has no meaning, or has a part that the verb does not take: a key in a read, a position in a publish.",
		"Publish to topic, topic#key or topic/partition; read from topic[/partition][@position]."},
	BadName: {"A topic's name has characters that names do not have, is longer than 249 bytes, or begins with __, which is the server's own.",
		"Use letters, digits, - and _ in tokens joined by dots, such as orders.eu."},
	NameCollision: {"There is a topic whose name differs only in . against _. Both would lie in one directory of Kafka's layout.",
		"Use the name that is there, or choose one that differs in more."},
	BadHeaders: {"The header block of a record does not begin with NATS/1.0, is not Name: value lines closed by an empty one, has two keys, or was sent after CONNECT said headers:false.",
		"Send it as NATS does. The message names the line that cannot be read."},
	BadBatch: {"What PRODUCE was sent is no sound sequence of Kafka record batches of version 2: a length, a count, an offset or the checksum is wrong.",
		"Build batches with a library that knows the format, and send them whole. Nothing of the request was written."},
	BadSetting: {"A setting of a topic is not known, not offered by this server, outside of its range, or written without its unit.",
		"The message names the setting and its range. Sizes and times carry units, such as 64KiB, 500ms, 7d."},
	UnknownTopic: {"No topic of this name exists: it is misspelt, was deleted, or was never made; or topics.auto_create is off.",
		"trunkline topic ls lists the topics; trunkline topic create NAME makes one."},
	TopicExists: {"The name is taken.",
		"Use the topic that is there, or choose another name. trunkline topic alter changes the settings of one that exists."},
	TopicDeleted: {"The topic was deleted while the request waited or a subscription read from it.",
		"Make the topic again if it is needed: it begins empty, at offset 0. A subscription goes on by itself when the name comes back."},
	UnknownPartition: {"The topic has fewer partitions than the one that was named. They are numbered from 0.",
		"trunkline topic info NAME shows its partitions. Leave the number out to let the server choose; trunkline topic create NAME --partitions N makes a topic with more, trunkline topic alter NAME --partitions N grows one."},
	NotSupported: {"This server knows what is meant and does not offer it. It is refused because ignoring it would be worse.",
		"Leave it out, or use a version that offers it."},
	TooLarge: {"Key, value and headers together exceed the topic's message.bytes; for PRODUCE, a batch does.",
		"Send smaller records, or raise message.bytes of the topic, which limits.payload bounds in turn."},
	OffsetOutOfRange: {"The offset lies below the start of the log, because retention or a trim has removed it, or above its end.",
		"Read on from @earliest, which skips what is gone, or from @latest. A position beyond the end was never given out by this log: was the topic deleted and made again?"},
	Corrupt: {"Bytes of the log on disk fail their checksum: a fault of the disk, of memory, or somebody wrote into the files.",
		"Stop the server and run trunkline log verify on the partition's directory. Subscriptions pass over the damage and say so; records there are lost unless a copy exists."},
	StorageFull: {"The disk of the data directory is full, up to the reserve that the store keeps for itself; or, of a topic in memory, storage.memory is used up.",
		"Free or add space, or lower retention with trunkline topic alter. Publishing goes on by itself as soon as there is room; nothing needs to be restarted."},
	StorageUnavailable: {"The partition cannot take records now: its store is being restarted, its directory is missing, or writing failed twice and the directory was set aside.",
		"Wait and try again: a restart takes about a second. If it stays, the server's log names the partition and the reason."},
	StorageUnknown: {"Writing or syncing failed after the record was handed to the disk. It may be there or not.",
		"Read the end of the partition to find out, or publish again and accept that the record may be there twice."},
	Timeout: {"There was no outcome within limits.publish_timeout, or within the timeout of the request: the disk is slow or stuck. The record may still be written.",
		"Read the end of the partition to find out, or publish again and accept that the record may be there twice. Look at the disk's latency."},
	PartitionerUnavailable: {"The plugin that chooses the topic's partitions does not answer, and its choice cannot be made without it.",
		"Wait and try again: it is being restarted. Publishing to a named partition, topic/0, needs no partitioner."},
	PlanStale: {"The records were spread by a plan that is not the topic's any more: it has grown, or its partitioner was changed.",
		"Read METADATA and partition the records anew. Clients do so by themselves."},
	MetadataUnavailable: {"The store of topics and settings does not answer: its plugin is being restarted, or ZooKeeper cannot be reached. Nothing can be made or changed; reading and, on one broker, publishing go on.",
		"Wait and try again; where something was to be changed, look first whether it was: trunkline topic ls. If it stays, the server's log says what the store is waiting for."},
	LimitExceeded: {"A limit of the server is reached: connections, subscriptions, topics made by publishing, or what one connection may have waiting.",
		"The message names the limit and its value. Use less of it, or raise it in the configuration."},
	SlowConsumer: {"A peer did not take what was sent to it for limits.write_deadline, or let more than limits.pending of live messages wait.",
		"Read faster, or subscribe to less. Subscriptions of topics go on from the next offset after a reconnect; live messages are gone."},
	ShuttingDown: {"The server was told to end and takes no new work.",
		"Connect again in a moment, or to another server. Clients do so by themselves."},
	UnknownPlugin: {"No plugin of this kind and name may be started: the server ships none, and plugins.<kind>.<name> is not configured.",
		"trunkline plugin ls lists what there is. A plugin is named by kind and name, as in partitioner/murmur2."},
	PluginNotReplaced: {"The new process of a plugin did not start or was refused: another file than the one that is pinned, a wrong configuration, or it ended at once.",
		"The message says what it was. trunkline plugin info shows how the plugin is now; trunkline plugin verify FILE shows the hash of a file."},
}
