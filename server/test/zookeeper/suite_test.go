package zookeeper

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/metadata/zookeeper/zookeepertest"
	"github.com/trunkline-mq/trunkline/server/test/harness"
)

// suite runs the conformance suite of metadata plugins on the one that is shipped, as an operator would.
func suite(config string, args ...string) (string, error) {
	cmd := exec.Command(harness.Binary("trunkline"), append([]string{"plugin", "test", "zookeeper", "--kind", "metadata", "--config", config}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestShippedPluginPassesItsSuite(t *testing.T) {
	t.Parallel()
	zk := zookeepertest.Start(t)
	out, err := suite(fmt.Sprintf(`{"zookeeper":{"servers":[%q],"chroot":"/suite/${CASE}","session":3000000000,"digest":"broker:secret"}}`, zk.Address))
	if err != nil || strings.Contains(out, "FAIL") || !strings.Contains(out, "killed in the middle of commits") {
		t.Errorf("%v:\n%s", err, out)
	}
}

func TestSuiteSaysWhatThePluginMisses(t *testing.T) {
	t.Parallel()
	zookeepertest.Require(t)
	for config, says := range map[string]string{
		`{}`: "no server is named",
		`{"zookeeper":{"servers":["127.0.0.1:1"],"chroot":"suite","session":3000000000}}`: "chroot",
	} {
		out, err := suite(config, "--match", "describes itself")
		if err == nil || !strings.Contains(out, says) {
			t.Errorf("%s: %v:\n%s", config, err, out)
		}
	}
}
