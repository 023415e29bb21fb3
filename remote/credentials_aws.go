package remote

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/credentials/processcreds"
	"github.com/aws/smithy-go/logging"
)

// This file alone knows the AWS SDK, of which nothing but credentials is used: so that they
// are found where the AWS command line finds them.

// awsChain is what the AWS SDK found to have credentials: the environment, a profile (keys,
// role_arn, SSO, credential_process), a web identity, a container's role, or, if there is
// none of these, the role of the machine.
type awsChain struct {
	provider aws.CredentialsProvider // with a cache
	env      config.EnvConfig
	profile  config.SharedConfig
	machine  bool // nothing but the machine's role is left
}

const (
	// machinePatience is how long the machine's role may take: the service that gives it is
	// near, or this is no machine of EC2.
	machinePatience = time.Second
	// firstPatience is how long all else may take: somebody may have to type something for a
	// credential_process.
	firstPatience = 2 * time.Minute
)

// findAWS looks for credentials as the AWS command line does, and has some when it
// returns without an error: [ErrAccess] where there are none. region is for the services
// that give credentials, where no configuration says another.
func findAWS(ctx context.Context, region string) (*awsChain, error) {
	c := &awsChain{}
	cfg, err := config.LoadDefaultConfig(ctx,
		config.WithDefaultRegion(region),
		config.WithDefaultsMode(aws.DefaultsModeStandard), // another may ask the machine where it is
		config.WithLogger(logging.Nop{}),
		config.WithEC2RoleCredentialOptions(func(*ec2rolecreds.Options) { c.machine = true }),
		config.WithCredentialsCacheOptions(func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = 15 * time.Second }),
	)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if env, eerr := config.NewEnvConfig(); err != nil && eerr == nil && env.Credentials.HasKeys() {
		// Whatever is wrong with the files is of no importance.
		return &awsChain{env: env, provider: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return env.Credentials, nil
		})}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: no credentials (%s)", ErrAccess, explain(err))
	}
	for _, from := range cfg.ConfigSources {
		switch from := from.(type) {
		case config.EnvConfig:
			c.env = from
		case config.SharedConfig:
			c.profile = from
		}
	}
	c.provider, c.machine = cfg.Credentials, c.machine && c.profile.RoleARN == ""
	patience := firstPatience
	if c.machine {
		patience = machinePatience
	}
	first, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err = c.credentials(first)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil && c.machine:
		looked := c.looked()
		if !strings.EqualFold(os.Getenv("AWS_EC2_METADATA_DISABLED"), "true") {
			looked = append(looked, "EC2 instance role: "+err.Error())
		}
		return nil, fmt.Errorf("%w: no credentials (%s)", ErrAccess, strings.Join(looked, "; "))
	case err != nil:
		return nil, fmt.Errorf("%w: no credentials (%s%s)", ErrAccess, c.named(), err)
	}
	return c, nil
}

// credentials is [source.credentials].
func (c *awsChain) credentials(ctx context.Context) (Credentials, error) {
	v, err := c.provider.Retrieve(ctx)
	if err != nil {
		return Credentials{}, errors.New(c.explain(err))
	}
	return Credentials{AccessKeyID: v.AccessKeyID, SecretAccessKey: v.SecretAccessKey, SessionToken: v.SessionToken}, nil
}

// region is where the environment or the profile says that buckets are; "" for nowhere.
func (c *awsChain) region() string {
	if c.env.Region != "" {
		return c.env.Region
	}
	return c.profile.Region
}

// named begins what is said about the profile that credentials were to come from.
func (c *awsChain) named() string {
	if c.profile.Profile == "" {
		return ""
	}
	return "profile " + c.profile.Profile + ": "
}

// explain is explain of an error of the chain, with what to do about it.
func (c *awsChain) explain(err error) string {
	if c.profile.SSOAccountID != "" {
		return explain(err) + "; to log in: aws sso login --profile " + c.profile.Profile
	}
	return explain(err)
}

// looked says where there was nothing.
func (c *awsChain) looked() []string {
	profile := c.env.SharedConfigProfile
	if profile == "" {
		profile = "default"
	}
	all := []string{"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: not set"}
	for _, file := range []struct {
		given string
		usual func() string
	}{
		{c.env.SharedCredentialsFile, config.DefaultSharedCredentialsFilename},
		{c.env.SharedConfigFile, config.DefaultSharedConfigFilename},
	} {
		name := file.given
		if name == "" {
			name = file.usual()
		}
		why := "nothing for profile " + profile
		f, err := os.Open(name)
		switch {
		case err == nil:
			f.Close()
		case errors.Is(err, fs.ErrNotExist):
			why = "no such file"
		default:
			why = errors.Unwrap(err).Error()
		}
		all = append(all, name+": "+why)
	}
	return all
}

// explain gives the reason of an error of the SDK: not all that it was about to do, and
// nothing that it read, which may be a secret.
func explain(err error) string {
	var (
		missing config.SharedConfigProfileNotExistError
		load    config.SharedConfigLoadError
		process *processcreds.ProviderError
		exit    *exec.ExitError
	)
	switch {
	case errors.As(err, &missing):
		return "profile " + missing.Profile + ": no such profile"
	case errors.As(err, &load):
		return load.Filename + ": malformed"
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.As(err, &process) && errors.As(err, &exit):
		return "credential_process: " + exit.Error()
	case errors.As(err, &process):
		return "credential_process: it cannot be run, or what it prints is not what it should be"
	}
	text := strings.TrimPrefix(err.Error(), "failed to refresh cached credentials, ")
	return strings.TrimPrefix(text, "no EC2 IMDS role found, operation error ec2imds: GetMetadata, ")
}
