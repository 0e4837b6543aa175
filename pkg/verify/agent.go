package verify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/libos"
)

// agent checks what starts first and gets secrets: the program that is measured as such is in its layer, and is told
// what the recipe says.
func (v *verification) agent() {
	r := v.c.Recipe
	if r == nil || r.Options.Secrets == nil && v.c.Agent == nil {
		return
	}
	var problems []string
	switch c := v.c.Agent; {
	case c == nil || r.Options.Secrets == nil:
		problems = append(problems, "the recipe and the enclave do not agree that there is an agent")
	default:
		sum := v.agentSum()
		if sum != r.Agent {
			problems = append(problems, fmt.Sprintf("its program has the digest %s, the recipe says %s", sum, r.Agent))
		}
		problems = append(problems, libos.AgentProblems(c, v.c.LibOS)...)
	}
	v.add(CheckAgent, agentDetail(v.c), problems)
}

// readAgent reads the agent once: both the image's conversion and the plain one are repeated with it.
func (v *verification) readAgent(ctx context.Context) error {
	program, err := v.c.AgentOf(ctx, v.s.Image)
	if err != nil || program == nil {
		return err
	}
	v.starts, err = libos.NewAgent(program)
	return err
}

// agentSum is the digest of the agent's program, in hexadecimal; empty if the image has no such program.
func (v *verification) agentSum() string {
	if v.starts == nil {
		return ""
	}
	return hex.EncodeToString(v.starts.SHA256[:])
}

// agentDetail says from whom the program gets which secrets.
func agentDetail(c *inspect.Converted) string {
	if c.Agent == nil {
		return "an agent gets secrets before the program starts"
	}
	return "before the program starts, an agent asks " + strings.Join(c.Agent.From(), ", then ") + " for " +
		strings.Join(c.Agent.Places(), ", ")
}

const noAgent = "no agent starts before the program, and gets it secrets"

// expectSecrets wants the servers to be expected ones from which the program gets secrets: who fills variables and
// files, and has the keys to encrypted ones, decides on much of what it does.
func (v *verification) expectSecrets(e Expectations, compared bool) {
	if v.c.Agent == nil {
		if len(e.SecretsFrom) > 0 {
			v.skip(CheckSecretsFrom, noAgent)
		}
		return
	}
	var others []string
	for _, s := range v.c.Agent.Servers {
		for _, id := range s.Identities() {
			if !slices.Contains(e.SecretsFrom, id) {
				others = append(others, s.Address+" is recognised by "+id)
			}
		}
	}
	switch {
	case len(others) == 0:
		v.add(CheckSecretsFrom, "secrets come from expected servers only", nil)
	case slices.Contains(e.MREnclave, v.c.MREnclave) && !v.signing:
		v.skip(CheckSecretsFrom, "this MRENCLAVE, which measures from whom secrets come, is an expected one")
	case e.AnySecrets:
		v.waive("any-secrets")
		v.skip(CheckSecretsFrom, "nobody said from whom secrets may come, and that was accepted")
	case len(e.SecretsFrom) > 0:
		v.add(CheckSecretsFrom, "secrets come from expected servers only", others)
	case compared || v.signing || !v.c.Simulated():
		v.undecided(CheckSecretsFrom, "whoever has the key of the server decides what the program gets: expect it "+
			"with --secrets-from, or accept --any-secrets: "+strings.Join(others, "; "))
	default:
		v.skip(CheckSecretsFrom, "nobody said from whom secrets may come")
	}
}

// vouchedAgent checks that somebody vouches for the agent, which is measured and has the secrets first.
func (v *verification) vouchedAgent(e Expectations) {
	if v.c.Agent == nil {
		if len(e.AgentDigest) > 0 {
			v.skip(CheckAgentIs, noAgent)
		}
		return
	}
	sum := v.agentSum()
	own, err := v.s.Places.Backend.Agent()
	switch {
	case err == nil && v.starts != nil && sha256.Sum256(own) == v.starts.SHA256:
		v.add(CheckAgentIs, "the agent is the one of this version of cconvert", nil)
	case slices.Contains(e.AgentDigest, sum):
		v.add(CheckAgentIs, "the agent is an expected one", nil)
	case slices.Contains(e.MREnclave, v.c.MREnclave) && !v.signing:
		v.skip(CheckAgentIs, "the agent, "+sum+", is another version's, and this MRENCLAVE, which measures it, is an "+
			"expected one")
	case len(e.AgentDigest) > 0:
		v.add(CheckAgentIs, "the agent is an expected one",
			[]string{fmt.Sprintf("it is %s, expected is %s", sum, list(e.AgentDigest))})
	default:
		v.undecided(CheckAgentIs, "the agent, which has the secrets first, is not the one of this version of "+
			"cconvert: expect it with --agent-digest "+sum)
	}
}
