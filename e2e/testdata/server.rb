require 'socket'
trap('TERM') { exit! 0 }
server = TCPServer.new('127.0.0.1', ARGV[0].to_i)
loop do
  client = server.accept
  client.gets
  client.write "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n" + File.read('/app/page')
  client.close
end
