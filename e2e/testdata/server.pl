use strict;
use warnings;
use IO::Socket::INET;
$SIG{TERM} = sub { exit 0 };
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $ARGV[0], Listen => 8, ReuseAddr => 1) or die $!;
while (my $client = $server->accept) {
    <$client>;
    open my $page, '<', '/app/page' or die $!;
    print $client "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n", <$page>;
    close $client;
}
