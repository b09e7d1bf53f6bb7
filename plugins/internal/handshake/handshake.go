// Package handshake holds the few words on which host and SDK must agree before they can talk: the cookie, the
// protocol number, the environment and the message size. It talks to nobody.
package handshake

// The cookie tells a plugin that a host started it. It keeps people from running plugins by hand; it is no secret.
const (
	CookieKey   = "TRUNKLINE_PLUGIN"
	CookieValue = "trunkline-plugin-1"
)

// ProtocolVersion is the version of the plugin contracts. It grows when a plugin built before can no longer be served as
// it is.
const ProtocolVersion = 1

// protocolFirst is the oldest version that was ever released.
const protocolFirst = 1

// Versions returns the versions of the plugin protocol that this build speaks, the newest first: the present one and
// the one before, where there was one. Both sides offer theirs, and the newest that both know is spoken.
func Versions() []int {
	if ProtocolVersion == protocolFirst {
		return []int{ProtocolVersion}
	}
	return []int{ProtocolVersion, ProtocolVersion - 1}
}

// ConfigEnv is the variable in which the host hands over the plugin's configuration, as one JSON object.
const ConfigEnv = "TRUNKLINE_PLUGIN_CONFIG"

// DataEnv is the variable in which the host names the data directory, to plugins that keep something there.
const DataEnv = "TRUNKLINE_PLUGIN_DATA"

// SocketDirEnv is the variable that names the private directory in which the plugin makes its socket.
const SocketDirEnv = "PLUGIN_UNIX_SOCKET_DIR"

// MessageBytesMax bounds a control message, both ways: batch bytes never travel in one, so this is generous.
const MessageBytesMax = 32 << 20

// WindowBytes is gRPC's window for flow control, of streams and connections, both ways. A fixed one: where gRPC looks for the
// best size by itself, it sends a ping with every burst of messages, and a window update with every few, each of which
// wakes the other process.
const WindowBytes = 1 << 20

// HealthService is the name under which a plugin's health is asked for.
const HealthService = "plugin"

// A plugin built with the SDK tells what it is in the header of every health answer. Plugins that do not are taken at
// the word of their command line.
const (
	HeaderKind    = "trunkline-kind"
	HeaderName    = "trunkline-name"
	HeaderVersion = "trunkline-version"
)

// ShutdownMethod asks a plugin to end by itself. Message and answer are empty.
const ShutdownMethod = "/plugin.GRPCController/Shutdown"
